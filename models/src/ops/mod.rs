//! Every operation a model may call. Only this folder looks at the device.
