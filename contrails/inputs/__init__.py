"""From integers of the dataset file to what a model sees."""
