"""The inputs of a model, computed from the dataset file: channels, normalisation, sampling, augmentation."""
