"""People drawn by program, in scenes, with everything known about them: a COCO data set without photographs."""
