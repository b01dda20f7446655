"""Whether folds can run at a site: looked at, or tried by a drill."""
