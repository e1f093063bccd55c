"""The live view of `keyturn top`: what the metrics doors of the instances say, on a terminal."""
