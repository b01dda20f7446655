"""Files that an ensemble writes: submissions, masks, scenes, pseudo-labels."""
