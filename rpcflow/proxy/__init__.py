# SPDX-License-Identifier: Apache-2.0
"""The proxy: clients and servers that cannot reach each other meet here; section 11 of the wire notes."""
