"""What follows one connection: reads the journals of its set, and brings its target what is in them."""
