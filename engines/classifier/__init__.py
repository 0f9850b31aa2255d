"""Small image classifiers: a convolutional network, its training, and its engine for a runner."""
