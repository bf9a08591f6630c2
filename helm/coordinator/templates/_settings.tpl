{{/* coordinator.yaml: the program's settings from values.config, and over them what follows from the other values. */}}
{{- define "coordinator.settings" -}}
{{- $name := include "coordinator.fullname" . -}}
{{- $gateway := required "addresses.gateway: say host:port at which sites reach the gateway" .Values.addresses.gateway -}}
{{- $enrolment := required "addresses.enrolment: say host:port at which sites enrol" .Values.addresses.enrolment -}}
{{- $http1 := default (printf "%s:8446" (first (splitList ":" $gateway))) .Values.addresses.gatewayHttp1 -}}
{{- $services := list (printf "%s-api" $name) (printf "%s-api.%s" $name .Release.Namespace) (printf "%s-api.%s.svc" $name .Release.Namespace) -}}
{{- $ingress := ternary (list .Values.ingress.host) (list) .Values.ingress.enabled -}}
{{- $names := concat (list "localhost" "127.0.0.1") $services .Values.addresses.rest $ingress | uniq -}}
{{- $database := dict "url" (include "coordinator.databaseUrl" .) "password_file" "/run/secrets/wardround/database/password" "pool_size" .Values.database.poolSize -}}
{{- with .Values.database.rootFile -}}
{{- $_ := set $database "root_file" (printf "trust/%s" .) -}}
{{- end -}}
{{- $blobs := dict "kind" .Values.blobs.kind -}}
{{- if eq .Values.blobs.kind "s3" -}}
{{- $s3 := dict "bucket" (required "blobs.s3.bucket: name the bucket, which must exist" .Values.blobs.s3.bucket) "prefix" .Values.blobs.s3.prefix "region" .Values.blobs.s3.region -}}
{{- with .Values.blobs.s3.endpointUrl }}{{- $_ := set $s3 "endpoint_url" . }}{{ end -}}
{{- with .Values.blobs.s3.caFile }}{{- $_ := set $s3 "ca_file" (printf "trust/%s" .) }}{{ end -}}
{{- with .Values.blobs.s3.existingSecret }}{{- $_ := set $s3 "credentials_file" "/run/secrets/wardround/s3/credentials" }}{{ end -}}
{{- with .Values.blobs.s3.profile }}{{- $_ := set $s3 "profile" . }}{{ end -}}
{{- $_ := set $blobs "s3" $s3 -}}
{{- end -}}
{{- $keys := dict "directory" (ternary "/srv/wardround-keys/coordinator/keys" "keys" (eq .Values.keys.kind "volume")) -}}
{{- $listeners := dict "host" "0.0.0.0" "port" 8444 "advertise" $gateway "http1_port" (ternary 8446 nil .Values.gateway.http1) -}}
{{- if .Values.gateway.http1 -}}
{{- $_ := set $listeners "http1_advertise" $http1 -}}
{{- end -}}
{{- $enrolling := dict "host" "0.0.0.0" "port" 8445 "advertise" $enrolment "http1_port" (ternary 8447 nil .Values.gateway.http1) -}}
{{- $own := dict "database" $database "blobs" $blobs "keys" $keys "rest" (dict "host" "0.0.0.0" "port" 8443 "names" $names) "gateway" $listeners "enrolment" $enrolling -}}
{{- if .Values.metrics.enabled -}}
{{- $_ := set $own "metrics" (dict "host" "0.0.0.0" "port" .Values.metrics.port) -}}
{{- end -}}
{{- toYaml (mergeOverwrite (deepCopy .Values.config) $own) -}}
{{- end -}}
