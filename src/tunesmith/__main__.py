"""python -m tunesmith: what torchrun and accelerate launch start, several times over."""

from tunesmith.cli import main

if __name__ == "__main__":
    main()
