"""Array kernels under the layers and models; import the one you need by its module."""
