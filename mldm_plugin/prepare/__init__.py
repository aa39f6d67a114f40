"""From pictures to a training set with person masks, face boxes and keypoints.

A command goes through four places:

    coco, folder, celebamask_hq   what there is: one `Source` a picture, in order, into the `index`
    people, mask_rcnn, faces      who is in a picture: a label map, face boxes, keypoints
    convert                       one picture: a `Source` becomes a row, a picture and a mask, or is rejected
    run                           all of them, in shards, over the processes of an `engine`; resumable, atomic

`synthetic` draws a data set of people, `check` looks one over. Nothing here needs torch but the networks.
"""
