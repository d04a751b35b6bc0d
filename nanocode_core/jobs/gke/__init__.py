"""Jobs on Kubernetes, as GKE offers TPUs and GPUs: manifests, their life, and how it is followed."""
