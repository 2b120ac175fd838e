"""Kernels of our own for CPUs with AVX-512: grouped convolutions (``conv``) and batch norm with its ReLU (``norm``).

They are C, compiled when they are first needed (``build``). Where there is no C compiler or no such CPU, and where
the environment variable ``LOCALLEARN_KERNELS`` is ``torch``, torch's operators compute instead.
"""
