"""Times parallel_level_sets alone: what `diffreg bench` measures of it."""

from diffreg.benchmark.one import main

if __name__ == "__main__":
    main("parallel_level_sets")
