"""Jobs that are asked for: journalled, named, from frozen code."""
