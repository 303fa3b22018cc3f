// Where the CRDs of Istio's API come from: scripts/chart puts those that the mesh reads into the chart.
module nodemesh.dev/crds

go 1.26

require istio.io/api v1.31.1
