"""Split networks inside the training loops of other packages; each needs the package that it is named after."""
