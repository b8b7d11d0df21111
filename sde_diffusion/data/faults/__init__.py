"""What in data makes a wrong model of them in silence?  `Look` finds it, in one pass, a part at a time."""
