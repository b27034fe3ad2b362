"""Compiles the C++ kernels beside this file for the machine at hand."""
