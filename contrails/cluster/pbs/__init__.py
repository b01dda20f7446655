"""The names that the submitit plugin had: entry points and jobs of earlier versions use them."""
