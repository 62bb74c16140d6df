"""What numba compiles. The vector type, loops on vectors, the operations of a program, and passes that are no program."""
