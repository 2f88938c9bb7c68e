"""rpcflow and stock apache-tvm against each other."""
