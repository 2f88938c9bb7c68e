# SPDX-License-Identifier: Apache-2.0
"""Servers an agent can hold."""
