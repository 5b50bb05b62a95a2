"""Times jacobian_determinant alone: what `diffreg bench` measures of it."""

from diffreg.benchmark.one import main

if __name__ == "__main__":
    main("jacobian_determinant")
