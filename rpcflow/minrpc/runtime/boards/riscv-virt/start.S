/* SPDX-License-Identifier: Apache-2.0 */
/* From reset to C, from traps to C, and the few instructions that C has no words for. */

.section .vectors, "ax"
.global rpcflow_reset
rpcflow_reset:
    csrw mie, zero
    la t0, rpcflow_trap_entry
    csrw mtvec, t0
    li t0, (0x80000000 >> 2) | ((4 << 20) / 8 - 1) /* FLASH of board.ld, where nothing may write: */
    csrw pmpaddr0, t0
    li t0, 0x9d /* it is locked; a region of a power of 2; execute, read */
    csrw pmpcfg0, t0
    la sp, rpcflow_stack_end
    li gp, 0
    call rpcflow_begin
    j rpcflow_crash

.section .text.rpcflow_trap_entry, "ax"
.balign 4
rpcflow_trap_entry:
    csrw mscratch, t0
    csrr t0, mcause
    bgez t0, rpcflow_crash /* not an interrupt; the stack may be what it is about */
    csrr t0, mscratch
    addi sp, sp, -64
    sw ra, 0(sp)
    sw t0, 4(sp)
    sw t1, 8(sp)
    sw t2, 12(sp)
    sw a0, 16(sp)
    sw a1, 20(sp)
    sw a2, 24(sp)
    sw a3, 28(sp)
    sw a4, 32(sp)
    sw a5, 36(sp)
    sw a6, 40(sp)
    sw a7, 44(sp)
    sw t3, 48(sp)
    sw t4, 52(sp)
    sw t5, 56(sp)
    sw t6, 60(sp)
    csrr a0, mcause
    call rpcflow_interrupt
    lw ra, 0(sp)
    lw t0, 4(sp)
    lw t1, 8(sp)
    lw t2, 12(sp)
    lw a0, 16(sp)
    lw a1, 20(sp)
    lw a2, 24(sp)
    lw a3, 28(sp)
    lw a4, 32(sp)
    lw a5, 36(sp)
    lw a6, 40(sp)
    lw a7, 44(sp)
    lw t3, 48(sp)
    lw t4, 52(sp)
    lw t5, 56(sp)
    lw t6, 60(sp)
    addi sp, sp, 64
    mret

/* Start again, and the link says so to the host. Needs no stack. An emulator with -semihosting sees status 99. */
.section .text.rpcflow_crash, "ax"
.global rpcflow_crash
.balign 16
rpcflow_crash:
    csrw mie, zero
#ifdef RPCFLOW_SEMIHOSTING
    li a0, 0x20 /* SYS_EXIT_EXTENDED */
    la a1, rpcflow_exit_99
.option push
.option norvc
    slli zero, zero, 0x1f
    ebreak
    srai zero, zero, 7
.option pop
#else
    li t0, 0x100000 /* the test device: reset */
    li t1, 0x7777
    sw t1, 0(t0)
#endif
1:  j 1b

.section .rodata.rpcflow_exit_99, "a"
.balign 4
rpcflow_exit_99:
    .word 0x20026, 99 /* ADP_Stopped_ApplicationExit */

.section .text.rpcflow_cpu, "ax"
/* void rpcflow_interrupts_on(void): which ones, the timer and the PLIC's */
.global rpcflow_interrupts_on
rpcflow_interrupts_on:
    li t0, 1 << 7 | 1 << 11
    csrs mie, t0
    csrsi mstatus, 8
    ret

.global rpcflow_lock
rpcflow_lock:
    csrci mstatus, 8
    ret

.global rpcflow_unlock
rpcflow_unlock:
    csrsi mstatus, 8
    ret

/* void rpcflow_wait(void): an interrupt wakes the processor also while it is kept out */
.global rpcflow_wait
rpcflow_wait:
    wfi
    csrsi mstatus, 8
    nop
    csrci mstatus, 8
    ret

.global rpcflow_code_fence
rpcflow_code_fence:
    fence.i
    ret
