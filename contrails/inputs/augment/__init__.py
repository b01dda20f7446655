"""Augmentation of training samples, computed on the device from random numbers drawn on the CPU.

Every kind takes the random numbers of its samples as an argument (see `contrails.inputs.sampling`), so that a sample is
a function of (seed, fold, step, position in the batch). Image and label are moved by the same map, with the label's
offset from the image taken into account (see `dihedral`). A label pixel whose image pixels were partly lost is ignored.
"""
