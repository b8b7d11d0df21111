"""What stands between a model and the data?  A codec, a low resolution, a base: found in a checkpoint, and trained."""
