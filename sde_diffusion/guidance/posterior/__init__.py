"""How do I draw data given a measurement of them?  By a `Posterior`: a model, a measurement, its noise and a rule."""
