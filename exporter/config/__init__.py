"""What a user may write: the model, the words its values are written in, and the loader with `file:line` mistakes."""
