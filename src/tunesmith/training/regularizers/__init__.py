"""What keeps a model near where it began, one file each: `make(*, keyword arguments) -> Companion`."""
