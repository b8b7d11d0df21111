"""How does a run go on where it ended, on any number of processes? What is random in a step follows from its number."""
