/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes for a process, where memory that is not touched costs nothing: give it to all files by `-include`. */
#ifndef RPCFLOW_POSIX_CONFIG_H
#define RPCFLOW_POSIX_CONFIG_H

#ifndef RPCFLOW_PACKET_NBYTES
#define RPCFLOW_PACKET_NBYTES (1 << 20)
#endif
#ifndef RPCFLOW_COPY_NBYTES
#define RPCFLOW_COPY_NBYTES INT64_MAX /* no limit: one packet for a tensor of any size */
#endif
#ifndef RPCFLOW_MAX_ARGS
#define RPCFLOW_MAX_ARGS 256
#endif
#ifndef RPCFLOW_TENSOR_NBYTES
#define RPCFLOW_TENSOR_NBYTES 65536
#endif
#ifndef RPCFLOW_MAX_FUNCTIONS
#define RPCFLOW_MAX_FUNCTIONS 4096
#endif
#ifndef RPCFLOW_MAX_BLOCKS
#define RPCFLOW_MAX_BLOCKS 4096
#endif
#ifndef RPCFLOW_MAX_MODULES
#define RPCFLOW_MAX_MODULES 0 /* a process loads nothing at run time */
#endif
#ifndef RPCFLOW_MAX_EVALUATORS
#define RPCFLOW_MAX_EVALUATORS 64
#endif
#ifndef RPCFLOW_MESSAGE_NBYTES
#define RPCFLOW_MESSAGE_NBYTES 4096
#endif

#endif
