"""A stand-in of Scalekit: a real HTTPS server in a process of its own, and the handle by which tests drive it.

The stand-in speaks as its documentation and its SDK say (paths, claims, statuses, signatures). tests/test_scalekit_sdk.py
holds it against the unmodified SDK. Three things no source documents, so that the stand-in may differ from Scalekit
there: the members of a back-channel logout token, the answer to a revocation of an ended session, and the default size
of a page. Settings of the stand-in choose among the likely ones.
"""
