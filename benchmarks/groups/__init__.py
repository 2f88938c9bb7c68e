# SPDX-License-Identifier: Apache-2.0
"""Groups of rows: each module has rows(settings), which yields them as they are measured."""
