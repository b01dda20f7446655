"""Random changes of training samples, made on the device from numbers that were drawn on the CPU.

Every kind takes the numbers of its samples as an argument (see `contrails.inputs.sampling`), so that a sample is a
function of (seed, fold, step, place in the batch). Image and label share one map, with the label's offset from the
image taken into account (see `dihedral`); a label pixel whose image is not all there any more is ignored.
"""
