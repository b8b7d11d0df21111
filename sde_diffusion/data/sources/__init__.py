"""Where do rows come from?  From tensors, data sets of PyTorch, streams, files on disk: one class for each."""
