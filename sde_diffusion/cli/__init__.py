"""What does the command line do?  It trains, samples, tunes, weighs, checks, demonstrates: one module for each command.

Each of these modules owns the parser of its command and what it runs; `main` puts them together.
"""
