"""Video: clips of a fixed number of frames, each decoded as a picture; one clip a row."""
