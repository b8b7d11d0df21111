"""What lies in a checkpoint?  Sealed manifests, files of tensors, and models by the names of their classes."""
