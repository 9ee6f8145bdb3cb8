"""Synthetic portraits: heads rendered from CC0 assets, aligned as FFHQ is, with everything about them known.

One integer seed is one portrait.  `sample` makes its scene, `geometry`, `hair` and `backdrop` what is in it, `render`
the picture on an OpenGL context without a window, `looks` its versions that are no photographs, and `dataset` folders
of them.  The renderer needs the extra ``synth``; nothing here needs torch.

Conventions of the package
* World units are MakeHuman's decimetres: after normalisation the eyes of every head lie 0.6155 apart and their middle
  at (0, 7.284, 1.245).  +x is the subject's left, +y up, +z out of the face.
* Angles of scenes are degrees: positive yaw turns the face to the viewer's right, positive pitch looks up, positive
  roll tilts the head to the viewer's left.
* Colours inside the renderer are linear RGB; pictures are sRGB, uint8 (H, W, 3), row 0 at the top.
* What is random comes from ``numpy.random.default_rng`` and the seed of the scene.
"""
