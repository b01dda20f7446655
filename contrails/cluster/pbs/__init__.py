"""Former module names of the submitit plugin, kept for entry points and jobs of earlier versions."""
