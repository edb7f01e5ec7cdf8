"""One module for each architecture, whose name is that of the module.

A module states its class as `NETWORK`. The class is built from a `Shape`, and from `width` and
`depth` where its constructor names them; its static method `why_not(shape)` gives the reason why it
cannot read images of that shape, or None. It must be possible to build it on the meta device.
"""
