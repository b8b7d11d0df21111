"""What is drawn in place of the model's own samples?  Guided ones, those that agree with what is known, exact ones."""
