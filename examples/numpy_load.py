"""Loads a checkpoint into NumPy arrays, which own their memory, and lists them.

    python examples/numpy_load.py model.safetensors
"""

import sys

import tensorhold


def main(path: str) -> None:
    arrays = tensorhold.load_file(path, framework="np")
    for name, array in arrays.items():
        print(f"{name}: {array.dtype} {array.shape}")
    print(f"{len(arrays)} arrays of {sum(array.nbytes for array in arrays.values()):,} bytes")

    # Only what is asked for is read.
    with tensorhold.safe_open(path, framework="np") as f:
        matrix = next((name for name in f.keys() if len(f.get_shape(name)) == 2), None)
        if matrix is not None:
            rows = f.get_slice(matrix)[:2]
            print(f"two rows of {matrix}: {rows.shape}, of {f.get_shape(matrix)}")


if __name__ == "__main__":
    main(sys.argv[1])
