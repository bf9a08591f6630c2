{{/* One role as a Deployment. Takes root and component: api, gateway or driver. */}}
{{- define "coordinator.deployment" -}}
{{- $own := index .root.Values .component -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "coordinator.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "coordinator.labels" . | nindent 4 }}
spec:
  {{- if not $own.autoscaling.enabled }}
  replicas: {{ $own.replicas }}
  {{- end }}
  revisionHistoryLimit: 3
  strategy:
    type: RollingUpdate
    rollingUpdate:
      maxUnavailable: 0
      maxSurge: 1
  selector:
    matchLabels: {{- include "coordinator.selector" . | nindent 6 }}
  template:
    metadata:
      labels: {{- include "coordinator.labels" . | nindent 8 }}
      annotations:
        checksum/config: {{ include "coordinator.settings" .root | sha256sum }}
        {{- with $own.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      {{- include "coordinator.podHead" . | nindent 6 }}
      terminationGracePeriodSeconds: 60
      {{- with $own.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $own.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $own.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $own.affinity }}
      affinity: {{- toYaml . | nindent 8 }}
      {{- end }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels: {{- include "coordinator.selector" . | nindent 14 }}
      {{- if eq .root.Values.keys.kind "volume" }}
      initContainers:
        {{- include "coordinator.waitForKeys" . | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ .component }}
          image: {{ include "coordinator.image" (dict "root" .root "image" .root.Values.image) }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          args: [serve, --config, /srv/wardround/coordinator.yaml, --roles, {{ .component }}]
          env: {{- include "coordinator.env" . | nindent 12 }}
          {{- include "coordinator.ports" . | nindent 10 }}
          {{- include (printf "coordinator.probes.%s" .component) . | nindent 10 }}
          {{- if ne .component "driver" }}
          lifecycle:
            preStop:
              # Services forget the pod before it stops to listen.
              exec:
                command: [sleep, "5"]
          {{- end }}
          securityContext: {{- include "coordinator.containerSecurity" .root | nindent 12 }}
          resources: {{- toYaml $own.resources | nindent 12 }}
          volumeMounts:
            {{- include "coordinator.mounts" . | nindent 12 }}
            {{- include "coordinator.keysMounts" . | nindent 12 }}
            {{- include "coordinator.blobMounts" . | nindent 12 }}
      volumes:
        {{- include "coordinator.volumes" . | nindent 8 }}
        {{- include "coordinator.keysVolume" . | nindent 8 }}
        {{- include "coordinator.blobVolumes" . | nindent 8 }}
{{- end -}}

{{- define "coordinator.ports" -}}
{{- $ports := list -}}
{{- if eq .component "api" -}}
{{- $ports = append $ports (dict "name" "rest" "containerPort" 8443) -}}
{{- else if eq .component "gateway" -}}
{{- $ports = concat $ports (list (dict "name" "gateway" "containerPort" 8444) (dict "name" "enrolment" "containerPort" 8445)) -}}
{{- if .root.Values.gateway.http1 -}}
{{- $ports = concat $ports (list (dict "name" "gateway-http1" "containerPort" 8446) (dict "name" "enrolment-http1" "containerPort" 8447)) -}}
{{- end -}}
{{- end -}}
{{- if .root.Values.metrics.enabled -}}
{{- $ports = append $ports (dict "name" "metrics" "containerPort" (int .root.Values.metrics.port)) -}}
{{- end -}}
{{- with $ports -}}
ports:
  {{- range . }}
  - name: {{ .name }}
    containerPort: {{ .containerPort }}
    protocol: TCP
  {{- end }}
{{- end -}}
{{- end -}}

{{/*
Probes. `doctor --live` asks the running process of this container; a port that answers says that sites can dial. A process
waits a minute for its database, so a start may take longer. Invariant: no probe of liveness asks for the database, which no
restart brings back; a process without it is given no work, and that is all.
*/}}
{{- define "coordinator.probes.api" -}}
startupProbe:
  httpGet: {path: /healthz, port: rest, scheme: HTTPS}
  periodSeconds: 3
  failureThreshold: 60
  timeoutSeconds: 3
livenessProbe:
  httpGet: {path: /healthz, port: rest, scheme: HTTPS}
  periodSeconds: 20
  timeoutSeconds: 5
readinessProbe:
  httpGet: {path: /readyz, port: rest, scheme: HTTPS}
  periodSeconds: 10
  timeoutSeconds: 5
{{- end -}}

{{- define "coordinator.live" -}}
exec:
  command: [wardround-coordinator, doctor, --live, --config, /srv/wardround/coordinator.yaml]
{{- end -}}

{{- define "coordinator.loop" -}}
exec:
  command: [wardround-coordinator, doctor, --live, --loop, --config, /srv/wardround/coordinator.yaml]
periodSeconds: 30
failureThreshold: 4
timeoutSeconds: 10
{{- end -}}

{{- define "coordinator.probes.gateway" -}}
startupProbe:
  tcpSocket: {port: gateway}
  periodSeconds: 3
  failureThreshold: 60
  timeoutSeconds: 3
livenessProbe:
  {{- include "coordinator.loop" . | nindent 2 }}
readinessProbe:
  tcpSocket: {port: gateway}
  periodSeconds: 10
  timeoutSeconds: 3
{{- end -}}

{{- define "coordinator.probes.driver" -}}
startupProbe:
  {{- include "coordinator.live" . | nindent 2 }}
  periodSeconds: 5
  failureThreshold: 40
  timeoutSeconds: 10
livenessProbe:
  {{- include "coordinator.loop" . | nindent 2 }}
readinessProbe:
  {{- include "coordinator.live" . | nindent 2 }}
  periodSeconds: 30
  timeoutSeconds: 10
{{- end -}}
