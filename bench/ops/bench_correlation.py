"""Times correlation alone: what `diffreg bench` measures of it."""

from diffreg.benchmark.one import main

if __name__ == "__main__":
    main("correlation")
