# SPDX-License-Identifier: Apache-2.0
"""Clients an agent can hold."""
