"""What is a denoiser trained by?  Denoising score matching, with noise levels and a weight of one's choice."""
