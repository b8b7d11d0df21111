"""What does a terminal get to see?  Lines that survive its end, and messages in the words of the command line."""
