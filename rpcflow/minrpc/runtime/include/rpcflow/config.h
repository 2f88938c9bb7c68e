/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sizes, all fixed when this is compiled; override by -DNAME=value. "Costs" is static memory where pointers have 32
 * bits. hal/posix_config.h has those for processes.
 */
#ifndef RPCFLOW_CONFIG_H
#define RPCFLOW_CONFIG_H

/* Largest request but for tensor data, which goes straight to its place: a call with its arguments, and where it is one
 * of a time evaluator the results behind it, 8 bytes each. Costs as many bytes. */
#ifndef RPCFLOW_PACKET_NBYTES
#define RPCFLOW_PACKET_NBYTES 1024
#endif

/* Largest packet with tensor data that hosts are asked to send (GetCRTMaxPacketSize). Costs nothing: data are not
 * buffered. Smaller ones make a host wait for more answers. */
#ifndef RPCFLOW_COPY_NBYTES
#define RPCFLOW_COPY_NBYTES 65536
#endif

/* Arguments of one call. Costs 16 bytes each. */
#ifndef RPCFLOW_MAX_ARGS
#define RPCFLOW_MAX_ARGS 16
#endif

/* Memory for the shapes and headers of one call's tensors: 40 bytes + 8 for each dimension, each (48 with 64-bit
 * pointers); and 8 (16) for each argument that is bytes. Costs as many bytes. */
#ifndef RPCFLOW_TENSOR_NBYTES
#define RPCFLOW_TENSOR_NBYTES 512
#endif

/* Functions offered by rpcflow_register or by a system library. Costs 8 bytes each. */
#ifndef RPCFLOW_MAX_FUNCTIONS
#define RPCFLOW_MAX_FUNCTIONS 32
#endif

/* Tensors, loaded modules and workspaces that live at the same time. Costs 8 bytes each. */
#ifndef RPCFLOW_MAX_BLOCKS
#define RPCFLOW_MAX_BLOCKS 32
#endif

/* Modules loaded at run time (load_module) at the same time. Costs 20 bytes each. */
#ifndef RPCFLOW_MAX_MODULES
#define RPCFLOW_MAX_MODULES 4
#endif

/* Time evaluators that live at the same time. Costs 52 bytes each. */
#ifndef RPCFLOW_MAX_EVALUATORS
#define RPCFLOW_MAX_EVALUATORS 2
#endif

/* 1: linked with the library of tvm-ffi, 2: with TVM's runtime library too. What is registered there can be called.
 * 0: there is nothing else here. */
#ifndef RPCFLOW_LIBRARY
#define RPCFLOW_LIBRARY 0
#endif

/* With a library: objects that a host may hold at the same time. Costs 16 bytes each, with 64-bit pointers. */
#ifndef RPCFLOW_MAX_OBJECTS
#define RPCFLOW_MAX_OBJECTS 16384
#endif

/* Longest error message. Costs as many bytes. */
#ifndef RPCFLOW_MESSAGE_NBYTES
#define RPCFLOW_MESSAGE_NBYTES 256
#endif

/* Alignment of tensors in bytes. TVM's kernels may assume 64. */
#ifndef RPCFLOW_ALIGNMENT
#define RPCFLOW_ALIGNMENT 64
#endif

/* Link layer: most payload of a frame, 32 to 1024. Costs itself twice over, and once more for each further frame of
 * the two next. */
#ifndef RPCFLOW_LINK_PAYLOAD_NBYTES
#define RPCFLOW_LINK_PAYLOAD_NBYTES 256
#endif

/* Link layer: frames that can be received before the program takes them, 1 to 64. Costs the payload + 2 each. */
#ifndef RPCFLOW_LINK_RECEIVE_FRAMES
#define RPCFLOW_LINK_RECEIVE_FRAMES 4
#endif

/* Link layer: frames under way to the host that it has not acknowledged, 1 to 64. Costs the payload + 8 each. */
#ifndef RPCFLOW_LINK_SEND_FRAMES
#define RPCFLOW_LINK_SEND_FRAMES 4
#endif

/* 1: XON and XOFF are never put on the line. */
#ifndef RPCFLOW_LINK_XONXOFF
#define RPCFLOW_LINK_XONXOFF 0
#endif

#endif
