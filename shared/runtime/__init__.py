"""What every process needs to run: settings, store executors, logging. Leaves out every rule of the business."""
