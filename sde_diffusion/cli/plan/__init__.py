"""What is a training asked for?  `Plan`: its options, from flags and a file; its data; its model."""
